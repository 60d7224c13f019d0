"Turns become `input_ids` and `labels`, packed into rows, with a verdict before training."
