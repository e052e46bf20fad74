import numpy as np, warnings
from scipy import stats
import sys; sys.path.insert(0,"/tmp/metrics")
from dareu_jax.evaluation.metrics import intervals as iv
rng=np.random.default_rng(1)
same=0;diffs=[]
for t in range(50):
  v=rng.uniform(size=rng.integers(5,60))
  a=iv.bootstrap_ci95(v)
  for kw in ("rng","random_state"):
    try:
      r=stats.bootstrap((v,),np.mean,n_resamples=2000,method="percentile",confidence_level=0.95,**{kw:np.random.default_rng(0)}); break
    except TypeError: continue
  b=(float(r.confidence_interval.low),float(r.confidence_interval.high))
  same+=a==b; diffs.append(max(abs(x-y) for x,y in zip(a,b)))
print(same,max(diffs))
print((1-.95)/2)
with warnings.catch_warnings(record=True) as w:
  warnings.simplefilter("always")
  print(stats.bootstrap((np.full(5,.5),),np.mean,n_resamples=2000,method="percentile",rng=np.random.default_rng(0)).confidence_interval, [str(x.message)[:80] for x in w])
x,y=rng.uniform(size=20),rng.uniform(size=20)
print(iv.paired_difference(x,y))
print(stats.permutation_test((x,y),lambda a,b,axis:np.mean(a-b,axis=axis),permutation_type="samples",n_resamples=2000,rng=np.random.default_rng((0,1))).pvalue)
try: print(stats.bootstrap((np.array([.5]),),np.mean,n_resamples=2000,method="percentile",rng=np.random.default_rng(0)))
except Exception as e: print(repr(e))
