"""Predictors: a bundle's networks as functions of volumes, those that read slice by slice among them.

Folders and batches of scans are not known here. Imports `backends`, `bundle`, `model_space`, `io` and the
root modules.
"""
