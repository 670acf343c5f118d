"""Networks of the papers, one file each."""
