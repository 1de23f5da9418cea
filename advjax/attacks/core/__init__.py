"""What attacks are made of: the driver, the judge, the balance of costs, shared geometry."""
