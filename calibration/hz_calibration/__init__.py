"""Calibration: what is fitted on held-out scans after training and before export."""
