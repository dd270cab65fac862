"""Where rows come from: files, folders, saved data sets, the hub; sampling, mixing, streaming."""
