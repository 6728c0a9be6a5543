"""Stage `latents`: PCA of every style sub-space (thesis II.B.1, IV.A.1; figure 5).

Writes:

- `style_space.safetensors`: `<sub-space>/mean`, `/components`, `/deviation`;
- `explained_variance.parquet`: subspace, component (from 1), ratio;
- `scatter.parquet`: attribute, pc1, pc2 (style units), value (of the attribute's first component), unit.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from normscape.inversion.style_space import WhitenedSubspace, to_tensors
from normscape.networks.generator import draw_latents
from normscape.stages.core import StageContext
from normscape.stages.models import load_auxiliaries, load_generator
from normscape.training.controllers import generated_values
from normscape.training.seeding import seeded

SCATTER_POINTS = 4000


@torch.no_grad()
def run(context: StageContext) -> dict[str, float]:
    """Fit the whitened style space."""
    config, device = context.config, context.device
    generator = load_generator(config, context.inputs["gan"], device)
    auxiliaries = load_auxiliaries(config, context.inputs["auxiliary"], device)
    z = draw_latents(config.latents.samples, generator, seeded(config.seed, "latents"))
    styles = torch.cat([generator.mapping(part).cpu() for part in z.split(4096)])
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    save_file(to_tensors(space), context.folder / "style_space.safetensors")
    rows = [
        {"subspace": name, "component": i + 1, "ratio": ratio}
        for name, part in space.items()
        for i, ratio in enumerate(part.explained.tolist())
    ]
    pq.write_table(pa.Table.from_pylist(rows), context.folder / "explained_variance.parquet")

    networks = {a.name: auxiliaries[a.name] for a in config.value_attributes}
    styles, values = generated_values(generator, networks, count=SCATTER_POINTS, seed=config.seed, purpose="scatter")
    columns: dict[str, list[object]] = {"attribute": [], "pc1": [], "pc2": [], "value": [], "unit": []}
    metrics: dict[str, float] = {}
    for attribute in config.value_attributes:
        part = space[attribute.name]
        components = part.whiten(styles[:, generator.subspace_slice(attribute.name)]) * part.deviation
        columns["attribute"] += [attribute.name] * SCATTER_POINTS
        columns["pc1"] += components[:, 0].tolist()
        columns["pc2"] += components[:, 1].tolist()
        columns["value"] += values[attribute.name][:, 0].tolist()
        columns["unit"] += [attribute.unit] * SCATTER_POINTS
        metrics |= {f"{attribute.name}_explained_{i + 1}": part.explained[i].item() for i in range(2)}
    pq.write_table(pa.table(columns), context.folder / "scatter.parquet")
    return metrics
