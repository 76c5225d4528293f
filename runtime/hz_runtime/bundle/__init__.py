"""`NAME.hz`: its manifest, its bytes verified, what it says about ages, and the engines built from it.

Who runs its networks is not known here. Imports `io` and the root modules.
"""
