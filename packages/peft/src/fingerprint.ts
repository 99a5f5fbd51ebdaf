/** In adapter_config.json: of the base that the adapter was trained on, where that is not the public one (`fingerprintOf`). */
export const fingerprintField = 'niwaki_base_sha256';
