"""The training loop: LightningModule, validation, checkpoints, meter."""
