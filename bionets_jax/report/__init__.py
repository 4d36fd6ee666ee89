"""Tables and figures from finished and running workdirs."""
