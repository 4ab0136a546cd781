"""Systems beside one another: report folders in, tables and charts with tests out."""
