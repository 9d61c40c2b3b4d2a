"""One room per task: its module, loss, scores and pictures."""
