"""BIDS: raw data sets in, derivatives out.

`layout` finds the T1-weighted scans of a data set, `derivatives` names and places what hz makes of them,
`participant` and `group` are the two levels of a BIDS App (Gorgolewski et al., PLoS Comput Biol 13(3), 2017).
"""
