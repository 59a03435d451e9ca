"""What every benchmark uses: the timing harness, OpenCLIP as a peer, batches of captions."""
