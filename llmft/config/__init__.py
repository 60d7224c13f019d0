"One YAML file is one run: its keys, their checks, and the files of other programs."
