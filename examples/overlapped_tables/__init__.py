"""Row-wise and table-wise tables whose exchange is behind the compute, inside a LightningModule, on several ranks."""
