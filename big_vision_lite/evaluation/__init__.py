"""What a trained model is worth: metrics that stream over batches."""
