"""hz as a part of a hospital: studies in, derived objects out, under the contracts of orchestrators.

`process` does it for studies in folders, `outcome` says what became of them, `contracts` knows the names that
orchestrators give folders and settings; `bridge` takes them from an Orthanc and stores results there, with
`orthanc` to ask it and `journal` to remember.
"""
