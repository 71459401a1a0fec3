use std::time::Instant;
fn main(){
 let a: Vec<String> = std::env::args().collect();
 let seed: u64 = a[1].parse().unwrap(); let seeds: u64 = a[2].parse().unwrap();
 let mutation = a.get(3).filter(|m| *m!="-").map(|m| m.parse().unwrap());
 let jobs = a.get(4).map_or(2, |j| j.parse().unwrap());
 let o = sim::fuzz::Options{seed,seeds,steps:500,peers:3..=5,jobs,mutation};
 std::panic::set_hook(Box::new(|_|{}));
 let t=Instant::now();
 let r = sim::fuzz::fuzz(&o);
 let e=t.elapsed().as_secs_f64();
 if let Some(f)=&r.failure { for l in &f.story {println!("{l}");} println!("seed {} steps {:?}\n{}", f.seed,f.steps,f.violation);}
 println!("{} seeds {} events {} acks {} blocked {:.2}s {:.0} ev/s", r.seeds,r.events,r.acknowledged,r.blocked,e,r.events as f64/e);
}
