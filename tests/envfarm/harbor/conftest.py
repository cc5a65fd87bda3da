collect_ignore = ["tasks"]  # their tests are for their boxes
