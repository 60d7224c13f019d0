"The run: arguments, checkpoints, resume, and a folder that explains itself."
