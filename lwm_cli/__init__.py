"""lwm_cli: the `lwm` program. Each command is one module; importing them costs only Typer."""
