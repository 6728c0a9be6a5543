"""From a raw T1 scan to a skull-stripped, bias-corrected volume on the atlas's grid (thesis III.B.2)."""
