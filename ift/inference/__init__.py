"""Generation and ranking: the one engine behind predict and the samples shown during training."""
