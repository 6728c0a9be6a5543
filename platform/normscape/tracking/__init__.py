"""MLflow: every run, its parameters, metrics, tables and figures. The files on disk stay the truth."""
