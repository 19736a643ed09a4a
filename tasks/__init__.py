"""What a round does: one folder a stage, named by its verb. Nothing here knows Prefect."""
