"""L2 normalisation of rows in Triton; `launch` holds what operators call."""
