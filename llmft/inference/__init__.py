"Ask a model in the form that it was trained in."
