// Each browser test chooses its own device: the page may hold several.
export {};
