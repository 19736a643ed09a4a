"""The stages of a distillation round, a folder each; dvc.yaml is their list.

Nothing here knows Prefect or Ray; what stages share is the library `cohobate`."""
