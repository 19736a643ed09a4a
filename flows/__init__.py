"""When and where a round runs: Prefect flows over the graph of `dvc.yaml`, placed by Ray."""
