import type { Theme } from 'vitepress';
import DefaultTheme from 'vitepress/theme';
import Finetune from './Finetune.vue';
import Speed from './Speed.vue';

export default {
  extends: DefaultTheme,
  enhanceApp: ({ app }) => {
    app.component('Finetune', Finetune);
    app.component('Speed', Speed);
  },
} satisfies Theme;
