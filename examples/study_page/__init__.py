"""The page of the study: one HTML file that needs nothing beside it, made from study.json and the files here."""
