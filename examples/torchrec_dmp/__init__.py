"""TorchRec's DistributedModelParallel, fed by the pipeline, inside a LightningModule."""
