"""Region or optimizer: from equal loss in either region, on with each optimizer."""
