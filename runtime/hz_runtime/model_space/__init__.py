"""Arrays: from a brain to the network's grid and back, what counts as brain, how unlike others a scan is.

Files and networks are not known here. Imports `io` (a volume and its geometry) and the root modules.
"""
