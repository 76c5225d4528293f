"""Raw heads in: brain mask, N4, registration to the MNI152 template, and the gates between them.

Needs the extra `prep`: niimath (N4 and registration). The template ships with hz; nothing is downloaded.
"""
