"Will it fit: a dry run of one step without weights or GPU."
