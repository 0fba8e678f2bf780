"""Single ops of rdkernels in code of your own; each file runs by itself and checks its claim."""
