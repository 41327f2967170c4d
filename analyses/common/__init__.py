"""What every analysis shares: options, configs, jobs whose results are kept, trajectories, and the page's end."""
