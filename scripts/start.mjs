// The main job on the embedded default: `npm start`.
import '../examples/moby-dick/main.mjs';
