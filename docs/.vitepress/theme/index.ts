import type { Theme } from 'vitepress';
import DefaultTheme from 'vitepress/theme';
import Finetune from './Finetune.vue';

export default {
  extends: DefaultTheme,
  enhanceApp: ({ app }) => {
    app.component('Finetune', Finetune);
  },
} satisfies Theme;
