"""The demo trained by clipfast and by OpenCLIP's train script, and how far apart the models are."""
