"""A local page on a trained system: move an attribute's value and see the image change, compare two subjects, map a scan.

`normscape explore` starts it. The parts: `trained` reads a run or a registered model, `render` makes pictures, `storage` keeps
dropped files, `work` scores them one after the other, `security` says who may ask, `app` holds the routes, `server` listens.
"""
