"""The sidecar: ingest, journal, sampler, and one supervised process for each sink and run."""
