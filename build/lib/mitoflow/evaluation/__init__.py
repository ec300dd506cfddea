"""What a model is worth: metrics, intervals, scores of boundaries and instances, reports and figures."""
