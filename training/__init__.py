"""What `train.py` stands on: configurations, data, a run's folder."""
