import { init, initializeModel, languageData, train, adamw, cosine, fullTapeBackprop } from './dist/index.js';
import * as tf from '@tensorflow/tfjs-core';
const d=await init({device:'wasm',threads:Number(process.argv[2]??1)}); console.log(d.description);
const name=tf.getBackend(); const acc={};
for(const k of tf.getKernelsForBackend(name)){ const n=k.kernelName; tf.unregisterKernel(n,name); tf.registerKernel({...k,kernelFunc:(a)=>{const t=performance.now(); const r=k.kernelFunc(a); const ar=Object.values(a.inputs).filter(x=>x).map(x=>(x.shape??x[0]?.shape)?.join('x')); const key=n+(process.argv[3]?' '+ar.join(' '):''); (acc[key]??=[0,0]); acc[key][0]+=performance.now()-t; acc[key][1]++; return r;}}); }
const config={architectures:['LlamaForCausalLM'],model_type:'llama',vocab_size:2048,hidden_size:192,intermediate_size:512,num_hidden_layers:6,num_attention_heads:6,num_key_value_heads:2,head_dim:32,max_position_embeddings:512,rms_norm_eps:1e-5,rope_theta:10000,hidden_act:'silu',initializer_range:.02,tie_word_embeddings:true,bos_token_id:null,eos_token_id:0,torch_dtype:'float16'};
const model=await initializeModel(config,{seed:1});
const rnd=()=>Int32Array.from({length:256},()=>Math.random()*2048|0); const rows=Array.from({length:64},()=>({ids:rnd(),targets:rnd(),starts:new Int32Array(256)}));
const data=languageData(rows,{vocabularySize:2048});
let c0,t0,n=0; for await (const e of train(model,{data,optimizer:adamw({learningRate:1e-3}),steps:24,batchSize:4,clip:1,seed:1,estimator:fullTapeBackprop()})) if(e.kind==='step'){ if(e.step===4){ c0=process.cpuUsage(); t0=performance.now(); for(const k in acc) delete acc[k]; } else if(e.step>4) n++; }
const u=process.cpuUsage(c0); console.log('steps',n,'ms/step',((performance.now()-t0)/n).toFixed(1),'cpu',((u.user+u.system)/n/1e3).toFixed(1));
let tot=0,cnt=0; for(const [ms,c] of Object.values(acc)){tot+=ms;cnt+=c} console.log('kernels ms/step',(tot/n).toFixed(1),'launches',cnt/n);
for(const [k,[ms,c]] of Object.entries(acc).sort((a,b)=>b[1][0]-a[1][0]).slice(0,Number(process.argv[4]??18))) console.log(k.padEnd(60),(ms/n).toFixed(2),'ms',(c/n).toFixed(1));
process.exit(0);
