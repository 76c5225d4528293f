"""Published networks of other groups: their weight files read, rebuilt and checked, one module a network.

The weights are theirs, under their licences, and no part of hz; nothing is downloaded. `importing` makes
bundles of them.
"""
