"""DICOM in and out: series found and chosen, converted without identity, written back as derived objects.

`intake` opens folders and archives, `series` reads what they hold, `selection` says which series is a
T1-weighted head, `convert` writes NIfTI; `derived` and `structured_report` write results on the source's
own slices. Everything but this needs the extra "dicom". Nothing here removes a face from a picture.
"""
