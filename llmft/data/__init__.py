"Where rows come from: files, the Hub, mixtures; equal rows and held-out rows."
