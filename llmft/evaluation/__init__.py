"Did it learn: scores by running what the model wrote, and by comparing."
