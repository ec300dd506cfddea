"""What a model is worth, and what masks hold: metrics, intervals, scores, measurements, reports and figures."""
